// Offers the kubelet GPUs that are not there: `device_plugin COUNT [RESOURCE]`. What a pod gets of one is a variable.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	count int
}

func (p plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch tells the devices once and then keeps the stream open: none of them ever fails.
func (p plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	devices := []*api.Device{}
	for i := range p.count {
		devices = append(devices, &api.Device{ID: fmt.Sprintf("pretended-%d", i), Health: api.Healthy})
	}
	if err := stream.Send(&api.ListAndWatchResponse{Devices: devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p plugin) Allocate(_ context.Context, asked *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, container := range asked.ContainerRequests {
		given := map[string]string{"PRETENDED_GPUS": strconv.Itoa(len(container.DevicesIds))}
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerAllocateResponse{Envs: given})
	}
	return answer, nil
}

func main() {
	count, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	resource := "nvidia.com/gpu"
	if len(os.Args) > 2 {
		resource = os.Args[2]
	}
	socket := filepath.Join(api.DevicePluginPath, "pretended-gpu.sock")
	for { // a kubelet that starts anew removes our socket, and must be told again
		if err := serve(socket, resource, plugin{count: count}); err != nil {
			log.Print(err)
		}
		time.Sleep(time.Second)
	}
}

// serve registers and returns when the socket has gone.
func serve(socket, resource string, offered plugin) error {
	os.Remove(socket)
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	defer server.Stop()
	api.RegisterDevicePluginServer(server, offered)
	go server.Serve(listener)
	connection, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: filepath.Base(socket), ResourceName: resource,
	})
	if err != nil {
		return err
	}
	log.Printf("%d of %s offered", offered.count, resource)
	for {
		if _, err := os.Stat(socket); err != nil {
			return nil
		}
		time.Sleep(time.Second)
	}
}
