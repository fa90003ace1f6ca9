// Prints what the official Go modules of CSI and of kubelet's plugin registration declare, one fact a line,
// sorted. The Rust test in ../descriptors.rs prints our own files in the same form and compares.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"

	_ "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	_ "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type listing struct{ lines []string }

func (l *listing) add(format string, arguments ...any) {
	l.lines = append(l.lines, fmt.Sprintf(format, arguments...))
}

// Extensions that are set on something, such as " [csi.v1.csi_secret=true]".
func marks(d protoreflect.Descriptor) string {
	var set []string
	d.Options().ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.IsExtension() {
			set = append(set, fmt.Sprintf(" [%s=%v]", field.FullName(), value.Interface()))
		}
		return true
	})
	sort.Strings(set)
	return strings.Join(set, "")
}

func kind(field protoreflect.FieldDescriptor) string {
	switch {
	case field.Message() != nil:
		return string(field.Message().FullName())
	case field.Enum() != nil:
		return string(field.Enum().FullName())
	}
	return field.Kind().String()
}

func (l *listing) field(what string, field protoreflect.FieldDescriptor) {
	oneof := ""
	if o := field.ContainingOneof(); o != nil {
		oneof = " oneof=" + string(o.Name())
	}
	l.add("%s %s = %d %s %s json=%s%s%s", what, field.FullName(), field.Number(), field.Cardinality(), kind(field),
		field.JSONName(), oneof, marks(field))
}

func (l *listing) enum(enum protoreflect.EnumDescriptor) {
	l.add("enum %s%s", enum.FullName(), marks(enum))
	for i := 0; i < enum.Values().Len(); i++ {
		value := enum.Values().Get(i)
		l.add("value %s.%s = %d%s", enum.FullName(), value.Name(), value.Number(), marks(value))
	}
	for i := 0; i < enum.ReservedRanges().Len(); i++ {
		r := enum.ReservedRanges().Get(i)
		l.add("reserved %s %d..=%d", enum.FullName(), r[0], r[1])
	}
}

func (l *listing) message(message protoreflect.MessageDescriptor) {
	entry := ""
	if message.IsMapEntry() {
		entry = " map"
	}
	l.add("message %s%s%s", message.FullName(), entry, marks(message))
	for i := 0; i < message.Fields().Len(); i++ {
		l.field("field", message.Fields().Get(i))
	}
	for i := 0; i < message.ReservedRanges().Len(); i++ {
		r := message.ReservedRanges().Get(i)
		l.add("reserved %s %d..=%d", message.FullName(), r[0], r[1]-1)
	}
	for i := 0; i < message.Enums().Len(); i++ {
		l.enum(message.Enums().Get(i))
	}
	for i := 0; i < message.Messages().Len(); i++ {
		l.message(message.Messages().Get(i))
	}
}

func (l *listing) service(service protoreflect.ServiceDescriptor) {
	l.add("service %s%s", service.FullName(), marks(service))
	stream := map[bool]string{true: "stream ", false: ""}
	for i := 0; i < service.Methods().Len(); i++ {
		m := service.Methods().Get(i)
		l.add("rpc %s (%s%s) (%s%s)%s", m.FullName(), stream[m.IsStreamingClient()], m.Input().FullName(),
			stream[m.IsStreamingServer()], m.Output().FullName(), marks(m))
	}
}

func main() {
	var l listing
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if file.Package() != "csi.v1" && file.Package() != "pluginregistration" {
			return true
		}
		for i := 0; i < file.Messages().Len(); i++ {
			l.message(file.Messages().Get(i))
		}
		for i := 0; i < file.Enums().Len(); i++ {
			l.enum(file.Enums().Get(i))
		}
		for i := 0; i < file.Services().Len(); i++ {
			l.service(file.Services().Get(i))
		}
		for i := 0; i < file.Extensions().Len(); i++ {
			extension := file.Extensions().Get(i)
			l.add("extension %s = %d %s %s of %s", extension.FullName(), extension.Number(),
				extension.Cardinality(), kind(extension), extension.ContainingMessage().FullName())
		}
		return true
	})
	sort.Strings(l.lines)
	for _, line := range l.lines {
		fmt.Fprintln(os.Stdout, line)
	}
}
